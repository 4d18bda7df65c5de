// Command etcd is the API server's store. Debian's is too old for it: before 3.4.31 etcd does not
// report progress on request, so lists and watches from the API server's cache wait until they fail.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
