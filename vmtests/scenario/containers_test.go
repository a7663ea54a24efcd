package scenario

import (
	"encoding/json"
	"io/fs"
	"os/exec"
	"regexp"
	"slices"
	"testing"

	"github.com/outguard/outguard/vmtests/image"
)

// crunFiles are Debian's crun with the libraries that it needs, and in a guest's
// /srv/containers what it needs to run two containers: web, and db, which may do
// too much.
func crunFiles(t *testing.T) []image.File {
	t.Helper()
	files := []image.File{hostFile(t, "/usr/bin/crun", 0o755)}
	out, err := exec.Command("ldd", "/usr/bin/crun").Output()
	if err != nil {
		t.Fatalf("ldd crun: %v", err)
	}
	for _, m := range regexp.MustCompile(`(?m)^\s+(?:\S+ => )?(/\S+)`).FindAllSubmatch(out, -1) {
		files = append(files, hostFile(t, string(m[1]), 0o755))
	}
	work := "#!/bin/sh\nwhile :; do cat /data/$1 >/dev/null; [ ! -e /tmp/go ] || { rm /tmp/go; /bin/id; }; sleep 1; done\n"
	for _, name := range []string{"web", "db"} {
		root := "/srv/containers/" + name
		files = append(files,
			image.File{Path: root + "/config.json", Mode: 0o644, Data: bundleConfig(t, name, name == "db")},
			image.File{Path: root + "/rootfs/bin/work", Mode: 0o755, Data: []byte(work)},
			image.File{Path: root + "/rootfs/data/" + name, Mode: 0o644, Data: []byte(name + "\n")},
			hostFileAs(t, "/bin/busybox", root+"/rootfs/bin/busybox"),
		)
		for _, applet := range []string{"sh", "cat", "sleep", "nsenter", "id", "mkdir", "mount", "chroot"} {
			files = append(files, hostFileAs(t, "/bin/busybox", root+"/rootfs/bin/"+applet))
		}
	}
	return files
}

func hostFile(t *testing.T, path string, mode fs.FileMode) image.File {
	t.Helper()
	f, err := image.FromHost(path, mode, path)
	if err != nil {
		t.Fatalf("%v (.ci/install vm installs it)", err)
	}
	return f
}

func hostFileAs(t *testing.T, from, to string) image.File {
	f := hostFile(t, from, 0o755)
	f.Path = to
	return f
}

type object = map[string]any

// bundleConfig is an OCI configuration. One that may do too much has all that it
// takes to enter the machine's namespaces through /proc.
func bundleConfig(t *testing.T, name string, tooMuch bool) []byte {
	t.Helper()
	caps := []string{"CAP_KILL"}
	mounts := []object{
		{"destination": "/proc", "type": "proc", "source": "proc"},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
		{"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
	}
	if tooMuch {
		caps = append(caps, "CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH")
		mounts = append(mounts, object{"destination": "/machine", "type": "bind", "source": "/proc", "options": []string{"rbind"}})
	}
	linux := object{"namespaces": []object{
		{"type": "pid"}, {"type": "mount"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
	}}
	if !tooMuch { // as crun's manager for systemd calls it; the other's path says nothing
		linux["cgroupsPath"] = "/machine.slice/crun-" + name + ".scope"
	}
	b, err := json.Marshal(object{
		"ociVersion": "1.0.2",
		"process": object{
			"args": []string{"/bin/work", name}, "cwd": "/", "user": object{"uid": 0, "gid": 0}, "env": []string{"PATH=/bin"},
			"capabilities": object{"bounding": caps, "effective": caps, "permitted": caps},
		},
		"root":   object{"path": "rootfs"},
		"mounts": slices.Clip(mounts),
		"linux":  linux,
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}
