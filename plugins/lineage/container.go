package lineage

import (
	"strings"

	"github.com/outguard/outguard/vsockproto"
)

// Namespaces are the numbers of a task's namespaces.
type Namespaces struct{ Mnt, PID, User, Net uint32 }

func (n Namespaces) numbers() [4]uint32 { return [4]uint32{n.Mnt, n.PID, n.User, n.Net} }

func namespacesOf(s *vsockproto.Subject) Namespaces {
	return Namespaces{s.MntNS, s.PidNS, s.UserNS, s.NetNS}
}

// initialPidNS is the number that the kernel gives to the first one alone.
const initialPidNS = 0xeffffffc

// Container is what a runtime runs in a cgroup of its own: one whose path has a
// runtime's form, or in which a program was started in mount and pid namespaces
// that are not the machine's. Text is the guest's: escape it before showing.
type Container struct {
	Path    string // of its cgroup
	Runtime string // docker, containerd, cri-o, podman, crun, runc, lxc, systemd, kubernetes; "" where the path does not say
	ID      string // the runtime's, as the path has it
	Begun   bool   // its first program was seen; what follows is of that
	Namespaces
	Program string // its path, at most 512 bytes
	Digest  [32]byte
	BootNs  uint64 // when

	Cgroup  uint64 // id; 0: not known, only ones below it are
	Removed bool   // its cgroup is gone

	number uint32 // in the tree; from 1
	nested Departure
}

// Departure is a set of ways in which a task is no longer where its container
// is.
type Departure uint8

const (
	LeftCgroup Departure = 1 << iota // it is in a cgroup that is not its container's
	LeftMnt                          // another mount namespace
	LeftPID
	LeftUser
	LeftNet
	LeftFiles  // it opens, maps or runs what lies in the machine's mount namespace
	LeftDevice // it mounts a file system of a device
	departures = LeftCgroup | LeftMnt | LeftPID | LeftUser | LeftNet | Deeds

	Deeds = LeftFiles | LeftDevice // what it does; the others are where it is
)

var departureWords = [...]string{
	"cgroup", "mount namespace", "pid namespace", "user namespace", "network namespace", "files of the machine's mount namespace", "a device mounted",
}

// String names them, "mount namespace, pid namespace".
func (d Departure) String() string {
	var words []string
	for i, w := range departureWords {
		if d>>i&1 != 0 {
			words = append(words, w)
		}
	}
	return strings.Join(words, ", ")
}

// Place is where an event happened, as far as containers go.
type Place struct {
	Container *Container // to whom its task belongs; nil: the machine itself, or not known
	Left      Departure  // in which it has left that, seen with this event first
	Outside   bool       // for the machine's own, another container's, or another cgroup; false: for namespaces of its own
	Unknown   bool       // nothing names its cgroup
}

// differs tells in what n is not c's.
func (c *Container) differs(n Namespaces) (d Departure) {
	theirs := n.numbers()
	for i, own := range c.numbers() {
		if own != theirs[i] {
			d |= LeftMnt << i
		}
	}
	return d
}

// prefixed are the forms NAME-ID.scope and NAME-ID of one element of a path; of
// more than one that fits the first counts. "" marks what only looks like one.
var prefixed = []struct{ prefix, runtime string }{
	{"docker-", "docker"},
	{"cri-containerd-", "containerd"},
	{"nerdctl-", "containerd"},
	{"crio-conmon-", ""},
	{"crio-", "cri-o"},
	{"libpod-conmon-", ""},
	{"libpod-", "podman"},
	{"crun-", "crun"},
	{"runc-", "runc"},
	{"lxc.payload.", "lxc"},
	{"lxc.monitor.", ""},
	{"machine-qemu", ""}, // a virtual machine, not a container
	{"machine-", "systemd"},
	{"systemd-nspawn@", "systemd"},
}

// below are the elements below which each element is an id.
var below = map[string]string{
	"docker": "docker", "crun": "crun", "lxc": "lxc", "libpod_parent": "podman",
	"default": "containerd", "k8s.io": "containerd", "moby": "docker",
}

// RuntimeOf finds by its path the container to which a cgroup belongs: the
// innermost whose form is a runtime's, "" where there is none. path is the part of
// cgroup that is the container's own.
func RuntimeOf(cgroup string) (runtime, id, path string) {
	kubernetes, before, at := false, "", 0
	for depth := 0; at < len(cgroup) && depth < maxCgroupDepth; depth++ {
		at++ // the slash
		end := at + strings.IndexByte(cgroup[at:]+"/", '/')
		element := cgroup[at:end]
		r, i := runtimeIn(element, before, kubernetes)
		if i != "" {
			runtime, id, path = r, i, cgroup[:end]
		}
		kubernetes = kubernetes || strings.HasPrefix(element, "kubepods")
		before, at = element, end
	}
	return runtime, id, path
}

func runtimeIn(element, before string, kubernetes bool) (runtime, id string) {
	for _, p := range prefixed {
		rest, is := strings.CutPrefix(element, p.prefix)
		if !is {
			continue
		}
		rest, scope := strings.CutSuffix(rest, ".scope")
		if service, is := strings.CutSuffix(rest, ".service"); is {
			rest, scope = service, true
		}
		if p.runtime == "" || p.runtime == "systemd" && !scope {
			return "", ""
		}
		return p.runtime, rest
	}
	switch r := below[before]; {
	case r != "" && !strings.Contains(element, "."):
		return r, element
	case kubernetes && Random(element):
		return "kubernetes", element
	}
	return "", ""
}

// Random reports whether an id is one that a runtime makes up, anew for each
// container: 32 or more digits of hex.
func Random(id string) bool {
	return len(id) >= 32 && strings.Trim(id, "0123456789abcdef") == ""
}

// Name says which container it is: RUNTIME/ID.
func (c *Container) Name() string {
	if c.Runtime == "" {
		return c.ID
	}
	return c.Runtime + "/" + c.ID
}

// Kind is what containers have in common that do the same work, in whatever
// machine and however often: RUNTIME/ID where a person or a program chose the
// id, and the path of its first program where the runtime made it up.
func (c *Container) Kind() string {
	if !Random(c.ID) || c.Program == "" {
		return c.Name()
	}
	return c.Program
}
