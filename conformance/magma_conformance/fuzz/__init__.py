"""Random differential testing: implementations that share no code compute random tasks, and every bit is compared.

`stream` provides random words, `draw_numbers` and `draw_arrays` turn them into hyper-parameters and values, and `case`
into a task. `hunt` runs tasks through implementations; `minimise` shrinks a failing task, and `repro` saves it.
"""
