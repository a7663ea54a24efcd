package respond

import (
	"bufio"
	"bytes"
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
	cmd := exec.Command(os.Args[0], "-test.run", "^TestCrashHelper$", "-test.timeout", "5m")
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

// TestJournalCutAnywhere cuts a journal at every page and around it: it opens
// whole, or is set aside to the byte and says so.
func TestJournalCutAnywhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.db")
	j := reopen(t, path)
	b := newBox(j)
	r := New(j, b, b, b, nil)
	stop := run(t, r)
	for range 20 {
		wait(t, r, submit(t, r, vm1, Log, Pause)[1])
	}
	stop()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n <= len(text); n++ {
		if at := n % os.Getpagesize(); at > 1 && at < os.Getpagesize()-1 && n%509 != 0 {
			continue
		}
		if err := os.WriteFile(path, text[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := OpenJournal(path)
		if err != nil {
			t.Fatalf("of %d bytes: %v", n, err)
		}
		entries := 0
		if err := j.Entries(func(Entry) bool { entries++; return true }); err != nil {
			t.Errorf("of %d bytes: %v", n, err)
		}
		cut := j.Cut()
		if err := j.Close(); err != nil {
			t.Error(err)
		}
		if cut == nil {
			if entries != 40 && n > 0 {
				t.Errorf("of %d bytes: %d orders of 40, and nothing said", n, entries)
			}
			continue
		}
		kept, err := os.ReadFile(cut.Aside)
		if err != nil || !bytes.Equal(kept, text[:n]) || entries != 0 {
			t.Errorf("of %d bytes: %d kept, %d orders, %v", n, len(kept), entries, err)
		}
		if err := os.Remove(cut.Aside); err != nil {
			t.Fatal(err)
		}
	}
}
