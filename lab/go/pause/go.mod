module shadow.invalid/lab/pause

go 1.26.0
