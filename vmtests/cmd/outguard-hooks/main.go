// Outguard-hooks is a program for guests: it makes each of the hooks beyond the
// first twelve run, and says on standard output what the agent is to have
// recorded of it:
//
//	TYPE TEXT...
//
// one line for each, where TEXTs are parts of the event as `outguard events
// --json` writes it. What the machine has nothing for is said as
//
//	skip TYPE REASON
//
//	outguard-hooks DIR
//
// DIR is a new directory on a file system with extended attributes.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

func main() {
	runtime.LockOSThread()
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "outguard-hooks: want a directory")
		os.Exit(2)
	}
	dir, err := filepath.Abs(os.Args[1])
	if err == nil {
		err = os.Mkdir(dir, 0o755)
	}
	if err == nil {
		err = os.Chdir(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "outguard-hooks:", err)
		os.Exit(1)
	}
	failed := false
	for _, deed := range deeds {
		if err := deed.do(); err != nil {
			failed = true
			fmt.Fprintf(os.Stderr, "outguard-hooks: %s: %v\n", deed.of, err)
		}
	}
	if failed {
		os.Exit(1)
	}
}

// deed makes a few hooks run.
type deed struct {
	of string
	do func() error
}

var deeds = []deed{
	{"tasks", tasks}, {"credentials", credentials}, {"others", others}, {"files", files}, {"names", names}, {"attributes", attributes},
	{"mounts", mounts}, {"sockets", sockets}, {"ipc", ipc}, {"keys", keys}, {"kernel", kernel},
	{"bpf", programs}, {"io_uring", rings}, {"children", children}, {"tun", tun},
}

// ran says that a hook ran, and what its record holds.
func ran(hook string, texts ...string) { fmt.Println(hook, strings.Join(texts, " ")) }

func skip(hook string, why any) {
	fmt.Println("skip", hook, strings.ReplaceAll(fmt.Sprint(why), "\n", " "))
}

// arg is an argument as an event has it.
func arg(name string, value uint64) string {
	return fmt.Sprintf(`{"name":"%s","value":%d}`, name, value)
}

func path(p string) string { return fmt.Sprintf(`"path":"%s"`, p) }

func named(s string) string { return fmt.Sprintf(`"name":"%s"`, s) }

func valued(s string) string { return fmt.Sprintf(`"value":"%s"`, s) }
