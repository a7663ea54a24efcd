package domain

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/outguard/outguard/host/domain/domaintest"
)

// BenchmarkCapture takes a paused guest of 3 GiB, of which it has written half,
// with a disk of 16 MiB, beside cp --sparse=always of the memory that it took;
// copied, where its RAM is a file that QEMU shares, and dumped by libvirt, where
// it is none:
//
//	stop-ms     how long the vCPUs stand for all of it
//	memory-MB/s cp-MB/s  of the same bytes
//	of-cp       the first by the second: 1 is as fast as cp
func BenchmarkCapture(b *testing.B) {
	for _, way := range []string{"copied", "dumped"} {
		b.Run(way, func(b *testing.B) { benchmarkCapture(b, way) })
	}
}

func benchmarkCapture(b *testing.B, way string) {
	g := domaintest.Start(b, domaintest.Config{Disks: []string{"qcow2"}, Memory: 3 << 10, Fill: 3 << 9, Shared: way == "copied"})
	c := New(nil)
	defer c.Close()
	if err := c.Pause(b.Context(), g.UUID); err != nil {
		b.Fatal(err)
	}
	var bytes int64
	var stop, memory, copied time.Duration
	n := 0
	for b.Loop() {
		dir := filepath.Join(g.Dir, fmt.Sprint("bench", n))
		s, err := c.Capture(b.Context(), g.UUID, dir, nil)
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if !strings.HasPrefix(how(s), way) {
			b.Fatalf("memory image: %s", how(s))
		}
		n, stop = n+1, stop+s.Finished.Sub(s.Started)
		for _, f := range s.Files {
			if f.Kind != "memory" {
				continue
			}
			began := time.Now()
			if out, err := exec.Command("cp", "--sparse=always", f.Path, f.Path+".copy").CombinedOutput(); err != nil {
				b.Fatalf("cp: %v: %s", err, out)
			}
			bytes, memory, copied = bytes+f.Size, memory+f.Took, copied+time.Since(began)
		}
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(stop.Milliseconds())/float64(n), "stop-ms")
	b.ReportMetric(float64(bytes)/1e6/memory.Seconds(), "memory-MB/s")
	b.ReportMetric(float64(bytes)/1e6/copied.Seconds(), "cp-MB/s")
	b.ReportMetric(copied.Seconds()/memory.Seconds(), "of-cp")
}
