"""The embedded world: drawn scenes, the language about them, and two small parts pretrained on it.

It needs no hub, no data set and no GPU, and the truth about every patch is known, so that what BASIC does to
visual embeddings can be measured exactly. Tests, `--model tiny` and `basic-lite demo` all run on it.

    scenes     what is where: things, scenes, which combinations are held out
    render     a scene as a picture, and which thing covers which patch
    lexicon    the words of the world in English and Chinese
    questions  what can be asked about a scene, and the right answers
    grammar    captions and questions as sentences
    dialogues  conversations about a scene, and queries on held-out scenes
    dataset    LLaVA JSON, PNG and MMBench TSV files for the normal readers
    world      these files beside the runs, for `--model tiny`
    signs      scenes with a word to read
    parts      where the two shipped parts are
"""
