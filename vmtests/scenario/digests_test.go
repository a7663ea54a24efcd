package scenario

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// digests holds the record against what outguard-versions printed: the
// uses of each file, in the order of the guest's clock, with their digests.
func (w *world) digests(ts *testscript.TestScript, neg bool, args []string) {
	usage(ts, !neg && (len(args) == 3 || len(args) == 4 && args[3] == "absent"), "digests NAME FILE TYPE [absent]")
	g, event := w.known(ts, args[0]), args[2]
	want := saidDigests(ts.ReadFile(args[1]), event, len(args) == 4)
	if len(want) == 0 {
		ts.Fatalf("no line of %s says digest %s", args[1], event)
	}
	ctx, cancel := bounded()
	defer cancel()
	var wrong string
	if !poll(3*time.Minute, func() bool {
		got, err := w.recorded(ctx, g.Name, event)
		ts.Check(err)
		wrong = compare(want, got)
		return wrong == ""
	}) {
		ts.Fatalf("%s of %s:\n%s", event, g.Name, wrong)
	}
	uses := 0
	for _, d := range want {
		uses += len(d)
	}
	ts.Logf("%d uses of %d files", uses, len(want))
}

// saidDigests reads "digest TYPE PATH SHA256" lines.
func saidDigests(text, event string, absent bool) map[string][]string {
	said := map[string][]string{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 4 || f[0] != "digest" || f[1] != event {
			continue
		}
		if absent && f[3] != "no-file" {
			f[3] = "absent"
		}
		said[f[2]] = append(said[f[2]], f[3])
	}
	return said
}

// use is an event that has a file, as far as it is compared.
type use struct {
	Boot uint64 `json:"boot_ns"`
	File struct {
		Path   string
		State  string `json:"digest_state"`
		Digest string
		Flags  uint32
		Magic  uint64
	}
	Mmap struct{ Prot uint32 }
}

// recorded are the digests of each file's uses: of mappings those that can be
// run, of opens those to read only.
func (w *world) recorded(ctx context.Context, name, event string) (map[string][]string, error) {
	text, err := w.install.CLI(ctx, "events", "--vm", name, "--type", event, "--json")
	if err != nil {
		return nil, err
	}
	var uses []use
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var u use
		if err := json.Unmarshal(lines.Bytes(), &u); err != nil {
			return nil, fmt.Errorf("event %s: %w", lines.Text(), err)
		}
		const accessMode, protExec, overlay = 3, 4, 0x794c7630
		if strings.Contains(u.File.Path, "/merged/") && u.File.Magic != overlay {
			continue // on 6.1 an overlay opens the layer's file under its own name
		}
		if event == "file_open" && u.File.Flags&accessMode != 0 || event == "mmap_file" && u.Mmap.Prot&protExec == 0 {
			continue
		}
		uses = append(uses, u)
	}
	slices.SortStableFunc(uses, func(a, b use) int { return int(int64(a.Boot - b.Boot)) })
	got := map[string][]string{}
	for _, u := range uses {
		digest := u.File.Digest
		if u.File.State != "sha256" {
			digest = u.File.State
		}
		got[u.File.Path] = append(got[u.File.Path], digest)
	}
	return got, lines.Err()
}

// compare names the files whose uses are not recorded as they were.
func compare(want, got map[string][]string) string {
	var b strings.Builder
	for _, path := range slices.Sorted(maps.Keys(want)) {
		if digests := want[path]; !slices.Equal(digests, got[path]) {
			fmt.Fprintf(&b, "%s\n\twant %s\n\tgot  %s\n", path, strings.Join(digests, "\n\t     "), strings.Join(got[path], "\n\t     "))
		}
	}
	return b.String()
}
