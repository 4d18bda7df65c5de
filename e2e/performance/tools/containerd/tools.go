//go:build tools

// Package tools names the programs that are built from this module: the runtime that ours is compared with.
package tools

import (
	_ "github.com/containerd/containerd/v2/cmd/containerd"
	_ "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"
)
