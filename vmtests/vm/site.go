package vm

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"syscall"
)

// Site is what tells one run of the tests from another on the same machine.
type Site struct {
	Dir    string // guests' disks, consoles and sockets
	Prefix string // of the domains' names, without the dash that follows it
}

var siteOK = regexp.MustCompile(`^[a-z0-9]{1,16}$`)

// Here is the site that OUTGUARD_LAB names: runs with different names can go
// on side by side. Without it, it is /var/lib/outguard-lab and outguard-test.
func Here() (Site, error) { return siteOf(os.Getenv("OUTGUARD_LAB")) }

func siteOf(name string) (Site, error) {
	s := Site{Dir: "/var/lib/outguard-lab", Prefix: "outguard-test"}
	if name == "" {
		return s, nil
	}
	if !siteOK.MatchString(name) { // it becomes a part of paths that are removed
		return Site{}, fmt.Errorf("OUTGUARD_LAB=%q: want 1 to 16 of a-z and 0-9", name)
	}
	return Site{Dir: s.Dir + "-" + name, Prefix: s.Prefix + "-" + name}, nil
}

// Name is a domain's name at this site.
func (s Site) Name(what string) string { return s.Prefix + "-" + what }

// Claim makes the site's directory this run's alone, until release or the end
// of the process. Whoever comes second would take the first one's guests away.
func (s Site) Claim() (release func() error, err error) {
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return nil, err
	}
	d, err := os.Open(s.Dir)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = fmt.Errorf("claim %s: another run is at it; OUTGUARD_LAB=name gives this one a place of its own", s.Dir)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d.Close, nil
}
