package vm

import (
	"fmt"
	"os"
	"regexp"
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
