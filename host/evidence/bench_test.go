package evidence

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

const benchFrame = 4096

// BenchmarkAppend appends frames of 4 KiB, synced as often as the default
// policy would at 1 s: here every 64 MiB, beside a plain file under the same
// policy.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{benchFrame, 64 << 10} {
		b.Run(fmt.Sprintf("evidence/%d", size), func(b *testing.B) {
			s := testStore(b, b.TempDir(), testKey(b), Options{Quota: 1 << 50})
			st := testStream(b, s)
			frame := make([]byte, size)
			at := time.Now()
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			synced := 0
			for range b.N {
				if _, err := st.Append(KindFrame, at, frame); err != nil {
					b.Fatal(err)
				}
				if synced += size; synced >= 64<<20 {
					synced = 0
					if err := st.Sync(); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
		b.Run(fmt.Sprintf("plainfile/%d", size), func(b *testing.B) { benchPlain(b, size) })
	}
}

func benchPlain(b *testing.B, size int) {
	dir, n := b.TempDir(), 0
	open := func() *os.File {
		n++
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprint(n)), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			b.Fatal(err)
		}
		return f
	}
	f := open()
	frame := make([]byte, size)
	b.SetBytes(int64(size))
	b.ResetTimer()
	synced := 0
	for range b.N {
		if _, err := f.Write(frame); err != nil {
			b.Fatal(err)
		}
		if synced += size; synced >= 64<<20 {
			synced = 0
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
			f.Close()
			f = open()
		}
	}
	f.Close()
}

// BenchmarkAppendLatency reports how long one append of a 4 KiB frame takes.
func BenchmarkAppendLatency(b *testing.B) {
	s := testStore(b, b.TempDir(), testKey(b), Options{Quota: 1 << 50})
	st := testStream(b, s)
	frame := make([]byte, benchFrame)
	took := make([]time.Duration, 0, b.N)
	for b.Loop() {
		start := time.Now()
		if _, err := st.Append(KindFrame, start, frame); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	for _, p := range []float64{50, 99, 99.9} {
		d := took[int(float64(len(took)-1)*p/100)]
		b.ReportMetric(float64(d)/1e3, fmt.Sprintf("p%v-us", p))
	}
}

// BenchmarkVerify verifies a stream, plain and sealed.
func BenchmarkVerify(b *testing.B) {
	for _, sealed := range []bool{false, true} {
		b.Run(fmt.Sprintf("sealed=%v", sealed), func(b *testing.B) {
			key := testKey(b)
			s := testStore(b, b.TempDir(), key, Options{SegmentSize: 16 << 20})
			st := testStream(b, s)
			frame := make([]byte, benchFrame)
			for i := range 8192 {
				le.PutUint64(frame[i%4000:], uint64(i)*0x9e3779b97f4a7c15)
				if _, err := st.Append(KindFrame, at0, frame); err != nil {
					b.Fatal(err)
				}
			}
			if sealed {
				if err := st.sealFull(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(8192 * benchFrame)
			for b.Loop() {
				if _, err := verify(st.Dir(), key.Verifier(), 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSeal seals a segment of 16 MiB.
func BenchmarkSeal(b *testing.B) {
	key := testKey(b)
	s := testStore(b, b.TempDir(), key, Options{SegmentSize: 16 << 20})
	st := testStream(b, s)
	frame := make([]byte, benchFrame)
	for i := range 4200 {
		le.PutUint64(frame[i%4000:], uint64(i)*0x9e3779b97f4a7c15)
		if _, err := st.Append(KindFrame, at0, frame); err != nil {
			b.Fatal(err)
		}
	}
	l, err := list(st.Dir())
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(16 << 20)
	out, err := os.Create(filepath.Join(b.TempDir(), "sealed"))
	if err != nil {
		b.Fatal(err)
	}
	defer out.Close()
	for b.Loop() {
		if _, err := out.Seek(0, 0); err != nil {
			b.Fatal(err)
		}
		if _, err := sealInto(b.Context(), out, st.Dir(), l.segments[0], l.segments[1].first, key, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAppendAgainstPlain appends frames and writes the same bytes to a
// plain file, in turns and under the same sync policy: every 64 MiB.
func BenchmarkAppendAgainstPlain(b *testing.B) {
	const turn = 64 << 20
	for _, size := range []int{benchFrame, 64 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := testStore(b, b.TempDir(), testKey(b), Options{Quota: 1 << 50})
			st := testStream(b, s)
			f, err := os.Create(filepath.Join(b.TempDir(), "plain"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			frame := make([]byte, size)
			var kept, plain time.Duration
			took := func(write, sync func() error) time.Duration {
				start := time.Now()
				for range turn / size {
					if err := write(); err != nil {
						b.Fatal(err)
					}
				}
				if err := sync(); err != nil {
					b.Fatal(err)
				}
				return time.Since(start)
			}
			for range b.N {
				kept += took(func() error { _, err := st.Append(KindFrame, at0, frame); return err }, st.Sync)
				plain += took(func() error { _, err := f.Write(frame); return err }, f.Sync)
			}
			b.ReportMetric(float64(b.N)*turn/1e6/kept.Seconds(), "MB/s")
			b.ReportMetric(plain.Seconds()/kept.Seconds(), "plain-ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}
