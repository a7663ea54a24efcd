package vm

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestSitesDoNotMeet(t *testing.T) {
	for _, test := range []struct{ env, dir, name string }{
		{"", "/var/lib/outguard-lab", "outguard-test-web"},
		{"b2", "/var/lib/outguard-lab-b2", "outguard-test-b2-web"},
	} {
		s, err := siteOf(test.env)
		if err != nil || s.Dir != test.dir || s.Name("web") != test.name || !nameOK.MatchString(s.Name("web")) {
			t.Errorf("%q: %+v, %v", test.env, s, err)
		}
	}
	for _, bad := range []string{"/etc", "..", "a b", "A", "a-b", "seventeenletters1"} {
		if s, err := siteOf(bad); err == nil {
			t.Errorf("%q: %+v, want an error", bad, s)
		}
	}
}

func TestSiteIsClaimedOnce(t *testing.T) {
	s := Site{Dir: filepath.Join(t.TempDir(), "lab")}
	release, err := s.Claim()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Claim(); err == nil || !strings.Contains(err.Error(), "OUTGUARD_LAB") {
		t.Errorf("claimed twice: %v", err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if release, err = s.Claim(); err != nil {
		t.Fatal(err)
	}
	release()
}

func TestAFullDiskIsRefused(t *testing.T) {
	if err := roomAt(t.TempDir(), 0); err != nil {
		t.Error(err)
	}
	if err := roomAt(t.TempDir(), 1<<63); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a disk with less than it takes: %v, want ENOSPC", err)
	}
}

func TestReportLeavesKernelThreadsOut(t *testing.T) {
	const said = `[   40.1] sysrq: Show Blocked State
[   41.1] sysrq: Show State
[   41.2] task:init            state:S stack:    0 pid:    1 ppid:     0 flags:0x00000002
[   41.2]  do_wait+0x160/0x2f0
[   41.3] task:kthreadd        state:S stack:    0 pid:    2 ppid:     0 flags:0x00004000
[   41.3]  kthreadd+0x2c2/0x300
[   41.4] task:rcu_gp          state:I stack:    0 pid:    3 ppid:     2 flags:0x00004000
[   41.4]  rescuer_thread+0x2d0/0x380
[   41.5] task:sh              state:S stack:    0 pid:  112 ppid:    22 flags:0x00000002
[   41.5]  n_tty_write+0x3a5/0x540
[   41.6] Sched Debug Version: v0.11
[   41.6] ktime                                   : 41.6
`
	got := strings.Join(ofTasks(said), "\n")
	for _, want := range []string{"Show Blocked State", "task:init", "do_wait", "task:sh", "n_tty_write"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if strings.Contains(got, "rcu_gp") || strings.Contains(got, "rescuer_thread") || strings.Contains(got, "ktime") {
		t.Errorf("what nobody looks for is in\n%s", got)
	}
	if n := len(ofTasks(strings.Repeat("[ 1.0] line\n", 1000))); n != reportLines+1 {
		t.Errorf("%d lines", n)
	}
}
