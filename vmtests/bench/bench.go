// Package bench turns what `go test -bench` prints into one line for each
// number:
//
//	bench NAME VALUE UNIT
//
// NAME is the package's last folder and the benchmark's name. Units are the
// testing package's (ns/op, B/op, allocs/op) or the benchmark's own.
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
			if _, err := fmt.Fprintf(w, "bench %s/%s %s %s\n", pkg, name, v.value, v.unit); err != nil {
				return n, err
			}
		}
	}
	return n, lines.Err()
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
