module ortolan.dev/programs/pause

go 1.25.0
