package bench

import (
	"strings"
	"testing"
)

func TestFilter(t *testing.T) {
	const in = `goos: linux
goarch: amd64
pkg: github.com/outguard/outguard/vsockproto
cpu: some
BenchmarkDecode-2   	 1000000	      1047.5 ns/op	       0 B/op	       0 allocs/op
PASS
ok  	github.com/outguard/outguard/vsockproto	1.2s
pkg: github.com/outguard/outguard/host/pipeline
BenchmarkVerdict/1k-2 	     100	  10 ns/op	        88.50 p50-us	       120 p99-us
BenchmarkNoise this line is somebody's log
--- FAIL: BenchmarkBroken
FAIL	github.com/outguard/outguard/host/pipeline	0.1s
`
	const want = `bench vsockproto/Decode 1047.5 ns/op
bench vsockproto/Decode 0 B/op
bench vsockproto/Decode 0 allocs/op
bench pipeline/Verdict/1k 10 ns/op
bench pipeline/Verdict/1k/p50 88.50 us
bench pipeline/Verdict/1k/p99 120 us
--- FAIL: BenchmarkBroken
FAIL	github.com/outguard/outguard/host/pipeline	0.1s
`
	var out strings.Builder
	n, err := Filter(&out, strings.NewReader(in))
	if err != nil || n != 6 {
		t.Errorf("%d numbers, %v; want 6", n, err)
	}
	if out.String() != want {
		t.Errorf("got\n%swant\n%s", &out, want)
	}
}
