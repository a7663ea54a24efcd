// SPDX-License-Identifier: Apache-2.0

package sensor

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestScanStarts(t *testing.T) {
	long := "cpu 1 2 3\nintr " + strings.Repeat("0 ", 40000) + "\n"
	for name, text := range map[string]string{
		"short":           "cpu 1\nctxt 5\nprocesses 4711\nprocs_running 1\n",
		"behind the long": long + "ctxt 77\nbtime 1\nprocesses 4711\nprocs_running 1\nsoftirq " + strings.Repeat("9 ", 4000) + "\n",
	} {
		for how, r := range map[string]io.Reader{"at once": strings.NewReader(text), "by bytes": iotest.OneByteReader(strings.NewReader(text))} {
			if n, err := scanStarts(r, make([]byte, 4096)); err != nil || n != 4711 {
				t.Errorf("%s, %s: %d, %v", name, how, n, err)
			}
		}
	}
	for _, text := range []string{"", "processes", long, "cpu 1\nprocesses 12"} {
		if n, err := scanStarts(strings.NewReader(text), make([]byte, 4096)); !errors.Is(err, errNoStarts) {
			t.Errorf("%d bytes: %d, %v", len(text), n, err)
		}
	}
}
