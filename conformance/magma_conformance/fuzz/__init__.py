"""Random differential testing: implementations that share no code compute random tasks, and every bit is compared.

`stream` has random words, `draw_numbers` and `draw_arrays` make hyper-parameters and values of them, and `case` a task.
`hunt` runs tasks through implementations; `minimise` makes a failing one small, and `repro` keeps it in a file.
"""
