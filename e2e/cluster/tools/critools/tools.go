//go:build tools

// Package tools pins crictl, which the tests of the CRI server use as a client that is not ours.
package tools

import _ "sigs.k8s.io/cri-tools/cmd/crictl"
