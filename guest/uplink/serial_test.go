// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPortIsFoundByItsName(t *testing.T) {
	dir := t.TempDir()
	for node, name := range map[string]string{"vport1p1": "org.qemu.guest_agent.0", "vport2p1": DefaultPort} {
		if err := os.Mkdir(filepath.Join(dir, node), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, node, "name"), []byte(name+"\n"), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "vport0p0"), 0o755); err != nil { // one without a name
		t.Fatal(err)
	}
	if node, err := portOf(dir, DefaultPort); node != "vport2p1" || err != nil {
		t.Errorf("%q, %v", node, err)
	}
	for _, test := range []struct{ dir, name, says string }{
		{dir, "other", "outguard enroll"},
		{filepath.Join(dir, "none"), DefaultPort, "virtio_console"},
	} {
		if _, err := portOf(test.dir, test.name); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, want %q in it", test.name, err, test.says)
		}
	}
}
