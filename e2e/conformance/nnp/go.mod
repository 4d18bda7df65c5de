module noderuntime.io/conformance/nnp

go 1.26.6
