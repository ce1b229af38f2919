// The shell of the test images: busybox's, as upstream's images have, but for one thing. Debian's
// busybox is older than theirs, and its shell drops environment variables whose names it could not
// use itself, like "data-1". Where there are any, bash takes its place, which keeps them.
package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

func usable(name string) bool {
	for i, c := range name {
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return name != ""
}

func main() {
	shell := "/bin/busybox"
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); !usable(name) {
			shell = "/bin/bash"
		}
	}
	// Both go by the name they are called by, which is sh.
	err := syscall.Exec(shell, os.Args, os.Environ())
	fmt.Fprintf(os.Stderr, "%s: %s: %v\n", os.Args[0], shell, err)
	os.Exit(127)
}
