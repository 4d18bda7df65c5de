//go:build tools

// Package tools pins crictl and critest: CRI clients that are not ours.
package tools

import (
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/cmd/critest"
)
