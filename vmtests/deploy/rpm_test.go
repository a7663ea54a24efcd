package deploy

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRPM is the other package's life in a root that does not run, such as an
// image that is being built: Debian's, since what the package's scripts ask for
// is systemctl, and not who packed it. What it installs is what the .deb does.
func TestRPM(t *testing.T) {
	required(t)
	clone, err := filepath.Abs("../..")
	check(t, err)
	tree, other := t.TempDir(), t.TempDir()
	do(t, "tar", "-C", tree, "--numeric-owner", "--exclude=./dev/*", "-xf", filepath.Join(cache, "debian", "bookworm.tar"))
	do(t, "dpkg-deb", "-x", packed(t, clone, "deb"), other)
	file := packed(t, clone, "rpm")
	rpm := func(args ...string) {
		do(t, "rpm", append([]string{"--root", tree, "--dbpath", "/var/lib/rpm"}, args...)...)
	}
	rpm("--initdb")

	rpm("-i", "--nodeps", file)
	rpm("-V", "--nodeps", "outguard-agent")
	check(t, filepath.WalkDir(other, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		same(t, path, filepath.Join(tree, strings.TrimPrefix(path, other)))
		return nil
	}))
	if !enabled(tree) {
		t.Error("the service is not enabled")
	}

	settings := filepath.Join(tree, "etc/default/outguard-agent")
	check(t, os.WriteFile(settings, []byte("# somebody's own\n"), 0o644))
	rpm("-U", "--nodeps", "--force", file)
	if text, err := os.ReadFile(settings); err != nil || string(text) != "# somebody's own\n" {
		t.Errorf("its next version changes the settings: %q, %v", text, err)
	}
	if !enabled(tree) {
		t.Error("its next version takes the service out")
	}

	rpm("-e", "outguard-agent")
	if enabled(tree) {
		t.Error("the service stays enabled")
	}
	if _, err := os.Stat(filepath.Join(tree, "usr/sbin/outguard-agent")); !os.IsNotExist(err) {
		t.Errorf("the agent stays: %v", err)
	}
}

// same compares two files' content and mode.
func same(t *testing.T, a, b string) {
	t.Helper()
	one, err := os.Lstat(a)
	check(t, err)
	two, err := os.Lstat(b)
	if err != nil || one.Mode() != two.Mode() {
		t.Errorf("%s: %v, %v", b, one.Mode(), err)
		return
	}
	if out, err := exec.CommandContext(t.Context(), "cmp", a, b).CombinedOutput(); err != nil {
		t.Errorf("%s: %v: %s", b, err, out)
	}
}

func enabled(tree string) bool {
	_, err := os.Lstat(filepath.Join(tree, "etc/systemd/system/sysinit.target.wants/outguard-agent.service"))
	return err == nil
}
