package vm

import (
	"path/filepath"
	"strings"
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
