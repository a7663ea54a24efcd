package respond

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
)

// TestKilledWhilePausing kills the process, with no chance to write anything
// more, in the middle of libvirt's call; the next one finds the order.
func TestKilledWhilePausing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	cmd := exec.Command(os.Args[0], "-test.run", "^TestCrashHelper$")
	cmd.Env = append(os.Environ(), "OUTGUARD_TEST_JOURNAL="+path)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "pausing") {
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	id, err := uuid.Parse(strings.TrimPrefix(lines.Text(), "pausing "))
	if err != nil {
		t.Fatalf("%q: %v", lines.Text(), err)
	}

	j := reopen(t, path)
	b := newBox(j)
	r := New(j, b, b, b, nil)
	run(t, r)
	if res := wait(t, r, Order{ID: id, Kind: Pause}); res.Status != Done || !res.Recovered || res.Already {
		t.Errorf("%+v", res)
	}
	if want := "order pause; pause; pause done"; b.said() != want {
		t.Errorf("calls: %s", b.said())
	}
}

// TestCrashHelper is the process that is killed.
func TestCrashHelper(t *testing.T) {
	path := os.Getenv("OUTGUARD_TEST_JOURNAL")
	if path == "" {
		t.Skip("run by TestKilledWhilePausing")
	}
	j := reopen(t, path)
	b := newBox(j)
	given := make(chan Order, 1)
	b.pause = func(context.Context, uuid.UUID) error {
		fmt.Printf("pausing %s\n", (<-given).ID)
		select {}
	}
	r := New(j, b, nil, nil, nil)
	run(t, r)
	given <- submit(t, r, vm1, Pause)[0]
	select {}
}
