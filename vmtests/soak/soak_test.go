package soak

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSoak is the short form of `make soak`: a minute and a half of faults.
func TestSoak(t *testing.T) {
	if !slices.Contains(strings.Split(os.Getenv("OUTGUARD_REQUIRE"), ","), "libvirt") {
		t.Skip("boots a guest: set OUTGUARD_REQUIRE=libvirt, after make build")
	}
	clone, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), Options{Clone: clone, For: 90 * time.Second, Seed: 1, Out: t.Output()}); err != nil {
		t.Fatal(err)
	}
}

// TestChannels: each transport has the faults that can happen to it.
func TestChannels(t *testing.T) {
	for name, n := range map[string]int{Serial: len(faults) - 1, Vsock: len(faults)} {
		c, err := channelOf(name)
		if err != nil || len(c.all()) != n {
			t.Errorf("%s: %d faults, %v", name, len(c.all()), err)
		}
	}
	if _, err := channelOf("pigeon"); err == nil {
		t.Error("no error")
	}
}

func TestExpects(t *testing.T) {
	f := &fault{want: "session/silent", also: "engine/* session/loss"}
	for rule, want := range map[string]bool{"session/silent": true, "engine/unjudged": true, "session/loss": true, "session/gap": false, "": false} {
		if f.expects(rule) != want {
			t.Errorf("%q: %v", rule, !want)
		}
	}
}

// TestVerdict: growth, missing records and what was noted on the way are errors.
func TestVerdict(t *testing.T) {
	ok := report{faults: map[string]*tally{}, rules: map[string]int{}}
	for _, u := range []usage{{1000, 10}, {9000, 50}, {9000, 50}, {12000, 55}} {
		ok.sample("outguardd", "7", u)
	}
	if err := ok.verdict(); err != nil {
		t.Error(err)
	}
	ok.sample("outguardd", "7", usage{9000 + mostGrowth + 1, 51})
	if err := ok.verdict(); err == nil || !strings.Contains(err.Error(), "grew") {
		t.Errorf("grown, and %v", err)
	}
	leaky := report{missing: 1}
	for _, n := range []int{5, 5, 5, 5 + mostFDs + 1} {
		leaky.sample("agent", "9", usage{100, n})
	}
	if err := leaky.verdict(); err == nil || !strings.Contains(err.Error(), "file descriptors") || !strings.Contains(err.Error(), "neither received") {
		t.Errorf("leaking, and %v", err)
	}
}
