// Command nnp says which user it runs as: a file that is root's and set-user-ID tells by it whether
// a container may gain privileges. It stands in for the program of the suite's "nonewprivs" image.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Printf("Effective uid: %d\n", os.Geteuid())
}
