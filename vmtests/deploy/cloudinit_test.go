package deploy

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

const snippet = "../../guest/deploy/cloud-init.yaml"

// userData is as much of cloud-init's as the snippet may have.
type userData struct {
	WriteFiles []struct {
		Path        string `yaml:"path"`
		Permissions string `yaml:"permissions"`
		Content     string `yaml:"content"`
	} `yaml:"write_files"`
	BootCmd [][]string `yaml:"bootcmd"`
	RunCmd  [][]string `yaml:"runcmd"`
}

func readUserData(t *testing.T) (u userData) {
	t.Helper()
	text, err := os.ReadFile(snippet)
	check(t, err)
	if !bytes.HasPrefix(text, []byte("#cloud-config\n")) {
		t.Error("cloud-init takes it for something else: its first line is not #cloud-config")
	}
	if err := yaml.UnmarshalWithOptions(text, &u, yaml.Strict()); err != nil {
		t.Fatal(err)
	}
	return u
}

// TestCloudInit: the snippet is what cloud-init takes, runs what it has written, and
// writes nothing that the package has.
func TestCloudInit(t *testing.T) {
	u, installed := readUserData(t), contents(t)
	runs := map[string]bool{}
	for _, w := range u.WriteFiles {
		mode, err := strconv.ParseUint(w.Permissions, 8, 12)
		if err != nil || !filepath.IsAbs(w.Path) || filepath.Clean(w.Path) != w.Path {
			t.Errorf("it writes %q with the mode %q", w.Path, w.Permissions)
		}
		if mode&0o022 != 0 {
			t.Errorf("%s: others may change what root runs: %o", w.Path, mode)
		}
		if _, ok := installed[w.Path]; ok {
			t.Errorf("%s is the package's", w.Path)
		}
		runs[w.Path] = mode&0o100 != 0
		if strings.HasPrefix(w.Content, "#!/bin/sh\n") {
			sh := exec.CommandContext(t.Context(), "sh", "-n")
			sh.Stdin = strings.NewReader(w.Content)
			if out, err := sh.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", w.Path, err, out)
			}
		}
	}
	for path, mode := range installed {
		runs[path] = mode&0o100 != 0
	}
	if len(u.RunCmd) == 0 {
		t.Error("it runs nothing")
	}
	for _, c := range slices.Concat(u.BootCmd, u.RunCmd) {
		// Where an initramfs of Debian's has mounted /run no program runs there, but
		// for those that a shell reads.
		shell := len(c) > 1 && c[0] == "/bin/sh"
		if shell {
			c = c[1:]
		}
		if len(c) > 0 && !shell && strings.HasPrefix(c[0], "/run/") {
			t.Errorf("it runs %q where nothing may be run", c)
		}
		if len(c) == 0 || !runs[c[0]] {
			t.Errorf("it runs %q, which neither it nor the package brings as a program", c)
		}
	}
}

// TestCloudInitScript: what cannot be fetched or has another digest is not installed.
func TestCloudInitScript(t *testing.T) {
	u, dir := readUserData(t), t.TempDir()
	if len(u.WriteFiles) != 1 {
		t.Fatalf("%d files", len(u.WriteFiles))
	}
	for name, text := range map[string]string{
		"curl": "#!/bin/sh\n[ -e " + dir + "/package ] && cp " + dir + "/package \"$2\"\n",
		"dpkg": "#!/bin/sh\necho \"dpkg $*\" >" + dir + "/installed\n",
		"rpm":  "#!/bin/sh\necho \"rpm $*\" >" + dir + "/installed\n",
	} {
		check(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
	}
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte("a package")))
	for _, test := range []struct{ name, content, digest, end, want string }{
		{"not there", "", sum, "deb", ""},
		{"another", "another package", sum, "deb", ""},
		{"as it stands", "a package", strings.Repeat("0", 64), "deb", ""},
		{"a .deb", "a package", sum, "deb", "dpkg -i " + dir + "/outguard-agent_amd64.deb\n"},
		{"an .rpm", "a package", sum, "rpm", "rpm -U " + dir + "/outguard-agent_amd64.rpm\n"},
	} {
		os.Remove(filepath.Join(dir, "installed"))
		os.Remove(filepath.Join(dir, "package"))
		if test.content != "" {
			check(t, os.WriteFile(filepath.Join(dir, "package"), []byte(test.content), 0o600))
		}
		script := strings.NewReplacer("/run/outguard", dir, strings.Repeat("0", 64), test.digest, "_amd64.deb", "_amd64."+test.end).Replace(u.WriteFiles[0].Content)
		sh := exec.CommandContext(t.Context(), "sh", "-c", script)
		sh.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH")}
		out, err := sh.CombinedOutput()
		got, _ := os.ReadFile(filepath.Join(dir, "installed"))
		if string(got) != test.want || (err == nil) != (test.want != "") {
			t.Errorf("%s: it runs %q, want %q; %v: %s", test.name, got, test.want, err, out)
		}
	}
}

// contents are the files that the package is made of, by the path where they come to
// be, and their modes.
func contents(t *testing.T) map[string]fs.FileMode {
	t.Helper()
	text, err := os.ReadFile("../../guest/deploy/nfpm.yaml")
	check(t, err)
	var p struct {
		Contents []struct {
			Destination string `yaml:"dst"`
			Info        struct {
				Mode fs.FileMode `yaml:"mode"`
			} `yaml:"file_info"`
		} `yaml:"contents"`
	}
	check(t, yaml.Unmarshal(text, &p))
	all := map[string]fs.FileMode{}
	for _, c := range p.Contents {
		all[c.Destination] = c.Info.Mode
	}
	if all["/usr/sbin/outguard-agent"] != 0o755 {
		t.Fatalf("the package has %v", all)
	}
	return all
}

// TestPackageContents: the .deb has the files that it is to be made of, with their
// modes, root's.
func TestPackageContents(t *testing.T) {
	required(t)
	clone, err := filepath.Abs("../..")
	check(t, err)
	out, err := exec.CommandContext(t.Context(), "dpkg-deb", "-c", packed(t, clone, "deb")).Output()
	check(t, err)
	got := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 6 && !strings.HasPrefix(f[0], "d") {
			got[strings.TrimPrefix(f[5], ".")] = f[0] + " " + f[1]
		}
	}
	for path, mode := range contents(t) {
		if want := mode.String() + " root/root"; got[path] != want {
			t.Errorf("%s: %q, want %q", path, got[path], want)
		}
		delete(got, path)
	}
	for path := range got {
		t.Errorf("the package has %s as well", path)
	}
}

// TestCloudInitSchema asks Debian's cloud-init, in a root of its own.
func TestCloudInitSchema(t *testing.T) {
	required(t)
	tree := t.TempDir()
	do(t, "tar", "-C", tree, "--exclude=./dev/*", "-xf", filepath.Join(cache, "debian", "cloud-init.tar"))
	do(t, "install", "-m", "0644", snippet, filepath.Join(tree, "user-data"))
	do(t, "chroot", tree, "cloud-init", "schema", "--config-file", "/user-data")

	text, err := os.ReadFile(snippet)
	check(t, err)
	wrong := bytes.Replace(text, []byte(`permissions: "0700"`), []byte("permissions: 0700"), 1)
	check(t, os.WriteFile(filepath.Join(tree, "user-data"), wrong, 0o644))
	if out, err := exec.CommandContext(t.Context(), "chroot", tree, "cloud-init", "schema", "--config-file", "/user-data").CombinedOutput(); err == nil {
		t.Errorf("a mode that is a number is let pass: %s", out)
	}
}
