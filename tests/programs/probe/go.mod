module ortolan.dev/programs/probe

go 1.25.0
