"""RUNS: from a command line to a finished run folder.

    arguments       the words of the command line            compose      yaml files + words → one config
    validation      faults of a config, all at once          preflight    faults that need files or arithmetic
    run_folder      where a run lives                        plan         the first lines: what is about to happen
    data            the data module of the yaml files        order        which example comes when, whatever the workers
    callbacks       set-up, two phases, timing               image_logger previews on disk
    checkpointing   last.ckpt, embeddings, atomic writes     random_state chance saved, restored, fenced off
    metrics         metrics.jsonl                            progress     the bar
    assembly        logger, callbacks and Trainer            run          the order in which all this happens
"""
