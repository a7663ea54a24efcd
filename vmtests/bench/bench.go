// Package bench turns what `go test -bench` prints into one line for each
// number:
//
//	bench NAME VALUE UNIT
//
// NAME is the package's last folder and the benchmark's name. Units are the
// testing package's (ns/op, B/op, allocs/op) or the benchmark's own; of
// "p50-us" the first half is a part of the name.
//
// Beside them it measures the agent in a guest.
package bench

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// procs is the GOMAXPROCS that testing appends to a name.
var procs = regexp.MustCompile(`-\d+$`)

// Filter copies the numbers out of r, and every line that tells of a failure.
// It returns how many numbers it wrote.
func Filter(w io.Writer, r io.Reader) (int, error) {
	n, pkg := 0, ""
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if p, ok := strings.CutPrefix(line, "pkg: "); ok {
			pkg = path.Base(p)
			continue
		}
		if failed(line) {
			fmt.Fprintln(w, line)
			continue
		}
		name, numbers, ok := parse(line)
		if !ok {
			continue
		}
		for _, v := range numbers {
			n++
			what, unit := split(v.unit)
			if _, err := fmt.Fprintf(w, "bench %s/%s%s %s %s\n", pkg, name, what, v.value, unit); err != nil {
				return n, err
			}
		}
	}
	return n, lines.Err()
}

// split takes a unit such as "p50-us" apart into "/p50" and "us".
func split(unit string) (what, of string) {
	i := strings.LastIndexByte(unit, '-')
	if i < 0 {
		return "", unit
	}
	switch unit[i+1:] {
	case "ns", "us", "ms", "s", "KiB":
		return "/" + unit[:i], unit[i+1:]
	case "ratio":
		return "/" + unit, "x"
	}
	return "", unit
}

func failed(line string) bool {
	return strings.HasPrefix(line, "--- FAIL") || strings.HasPrefix(line, "FAIL") || strings.HasPrefix(line, "panic:")
}

// number is one measured value.
type number struct{ value, unit string }

// parse reads "BenchmarkName-2  1000  123 ns/op  4 allocs/op".
func parse(line string) (name string, numbers []number, ok bool) {
	f := strings.Fields(line)
	if len(f) < 4 || len(f)%2 != 0 || !strings.HasPrefix(f[0], "Benchmark") {
		return "", nil, false
	}
	if _, err := strconv.Atoi(f[1]); err != nil {
		return "", nil, false
	}
	for i := 2; i < len(f); i += 2 {
		if _, err := strconv.ParseFloat(f[i], 64); err != nil {
			return "", nil, false
		}
		numbers = append(numbers, number{f[i], f[i+1]})
	}
	return procs.ReplaceAllString(strings.TrimPrefix(f[0], "Benchmark"), ""), numbers, true
}
