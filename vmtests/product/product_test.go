package product

import (
	"errors"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/outguard/outguard/vmtests/vm"
)

func TestForeignInstallationIsLeftAlone(t *testing.T) {
	l := Under(t.TempDir())
	key := filepath.Join(l.State, "host.key")
	if err := os.MkdirAll(l.State, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), l, t.TempDir(), Files{}); !errors.Is(err, ErrForeign) {
		t.Errorf("New: %v, want ErrForeign", err)
	}
	if err := Remove(t.Context(), l); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(key); err != nil || string(b) != "theirs" {
		t.Errorf("their key: %q, %v", b, err)
	}
}

// stand-ins for the binaries: what is tested is how they are installed and
// run.
var stubs = map[string]string{
	"outguardd":            "#!/bin/sh\ngrep -E '^(Uid|Groups|CapEff|CapBnd)' /proc/self/status\nexec sleep 1000\n",
	"outguard":             "#!/bin/sh\ngrep -q CapEff " + "\"$(dirname \"$0\")\"/../state/outguardd.log\n",
	"outguard-engine-tsem": "#!/bin/sh\n",
}

func TestInstallRunRemove(t *testing.T) {
	if !slices.Contains(strings.Split(os.Getenv("OUTGUARD_REQUIRE"), ","), "libvirt") {
		t.Skip("makes system users: set OUTGUARD_REQUIRE=libvirt")
	}
	site, err := vm.Here()
	if err != nil {
		t.Fatal(err)
	}
	dir, bin := filepath.Join(site.Dir, "install-test"), t.TempDir()
	for name, text := range stubs {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	others := installed() // then the users are theirs, to be there and to go
	_, err = user.Lookup("outguard")
	had := err == nil
	others = others || installed()
	l := Under(dir)
	p, err := New(t.Context(), l, bin, Files{Config: "state_dir: " + l.State + "\n"})
	if err != nil {
		t.Fatal(err)
	}
	defer Remove(t.Context(), l)
	began := time.Now()
	if err := p.StartMonitor(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("answered after %s", time.Since(began))
	log, err := os.ReadFile(p.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	u, err := user.Lookup("outguard")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Uid:\t" + u.Uid, "CapEff:\t00000000000800e4", "CapBnd:\t00000000000800e4"} {
		if !strings.Contains(string(log), want) {
			t.Errorf("the monitor runs with\n%swant %q", log, want)
		}
	}
	if err := Remove(t.Context(), l); err != nil {
		t.Fatal(err)
	}
	for _, d := range l.dirs() {
		if _, err := os.Stat(d); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left behind: %s (%v)", d, err)
		}
	}
	others = others || installed()
	if _, err := user.Lookup("outguard"); (err == nil) != had && !others {
		t.Errorf("user outguard: was there %v, is there %v", had, err == nil)
	}
	os.Remove(dir)
}

// installed reports whether an installation of ours is on this machine.
func installed() bool {
	_, err := os.Stat(usersDir)
	return err == nil
}
