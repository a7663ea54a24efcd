// Package fulldisk lets tests run out of disk: a limit on the size of files stands in
// for one that is full. Nothing of it is in a product build.
package fulldisk

import (
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

const marker = "OUTGUARD_FULLDISK"

// Alone runs the test in a process of its own, whose output it checks for that, and
// reports that it did; there it returns false. The limit is the process's, and what package
// testing writes down of a test, for go test to keep its result by, has to have room.
func Alone(t *testing.T) bool {
	t.Helper()
	if os.Getenv(marker) == t.Name() {
		return false
	}
	cmd := exec.Command(os.Args[0], "-test.v", "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), marker+"="+t.Name())
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()+" ") {
		t.Fatalf("alone: %v\n%s", err, out)
	}
	return true
}

// Within runs do while no file may have more than so many bytes, in a test that is alone:
// what is written beyond is refused, as by a disk that is full.
func Within(t *testing.T, most int64, do func()) {
	t.Helper()
	if os.Getenv(marker) != t.Name() {
		t.Fatal("a test that fills the disk asks Alone first")
	}
	signal.Ignore(unix.SIGXFSZ)
	defer signal.Reset(unix.SIGXFSZ)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(most), Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
			t.Fatal(err)
		}
	}()
	do()
}
