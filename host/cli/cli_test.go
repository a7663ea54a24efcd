package cli

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apitest"
	"github.com/outguard/outguard/plugins/engine"
)

// Interrupting what follows is how it ends, and no error; what has come is out.
func TestFollowEndsWhenInterrupted(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "api.sock")
	l, err := api.Listen(socket, -1)
	if err != nil {
		t.Fatal(err)
	}
	b := apitest.New()
	b.Add(&engine.Finding{ID: "01J", VM: uuid.UUID{15: 1}, At: time.Unix(1, 0), Severity: engine.Low, Rule: "r"})
	serving, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- api.New(b, nil).Serve(serving, l) }()
	defer func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()

	ctx, interrupt := context.WithCancel(t.Context())
	r, w := io.Pipe()
	code := make(chan int, 1)
	var stderr bytes.Buffer
	go func() {
		code <- Main(ctx, []string{"findings", "-f", "--since", "1970-01-01", "--socket", socket}, nil, w, &stderr)
		_ = w.Close()
	}()
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil || !strings.Contains(line, "[01J]") {
		t.Fatalf("%q, %v", line, err)
	}
	interrupt()
	if got := <-code; got != ExitOK || stderr.Len() > 0 {
		t.Errorf("exit code %d, %s", got, stderr.String())
	}
}

func TestSince(t *testing.T) {
	zone := time.FixedZone("", 2*3600)
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, zone)
	for _, tc := range []struct{ in, want string }{
		{"10m", "2026-03-04T02:56:07.000000000Z"},
		{"1h30m", "2026-03-04T01:36:07.000000000Z"},
		{"3d", "2026-03-01T03:06:07.000000000Z"},
		{"2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000000000Z"},
		{"2026-01-02T03:04:05.5+01:00", "2026-01-02T02:04:05.500000000Z"},
		{"2026-01-02 03:04:05", "2026-01-02T01:04:05.000000000Z"},
		{"2026-01-02 03:04", "2026-01-02T01:04:00.000000000Z"},
		{"2026-01-02", "2026-01-01T22:00:00.000000000Z"},
		{"01:30", "2026-03-03T23:30:00.000000000Z"},
		{"", ""},
	} {
		got, err := since(tc.in, now)
		if err != nil || got != tc.want {
			t.Errorf("since(%q) = %s, %v, want %s", tc.in, got, err, tc.want)
		}
	}
	for _, in := range []string{"yesterday", "-5m", "99999999999d", "2026-13-01"} {
		if got, err := since(in, now); err == nil {
			t.Errorf("since(%q) = %s", in, got)
		}
	}
}

func TestQuote(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{"/bin/sh", "/bin/sh"},
		{"", `""`},
		{"two words", `"two words"`},
		{`say "hi"`, `"say \"hi\""`},
		{`\x1b`, `"\x1b"`}, // as the API has escaped it
		{"\x1b", `"\x1b"`}, // and if it had not
		{"größe", `"größe"`},
		{"a\u202eb", `"a\u202eb"`},
	} {
		if got := quote(tc.in); got != tc.want {
			t.Errorf("quote(%q) = %s, want %s", tc.in, got, tc.want)
		}
	}
}

func TestSizesAndDurations(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 3 << 20: "3.0 MiB", 1<<64 - 1: "16.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		170 * time.Microsecond: "0.2ms", 2500 * time.Microsecond: "2.5ms", 1234 * time.Millisecond: "1.23s", 75 * time.Second: "1m15s",
	} {
		if got := duration(d); got != want {
			t.Errorf("duration(%d) = %s, want %s", d, got, want)
		}
	}
}

// The command line reads the monitor's configuration without its code; what it
// takes for the defaults is what docs/CONFIG.md says that they are.
func TestDefaultsAreTheMonitors(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "CONFIG.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindSubmatch(text)
	if block == nil {
		t.Fatal("no configuration in docs/CONFIG.md")
	}
	var want, got paths
	if err := yaml.Unmarshal(block[1], &want); err != nil {
		t.Fatal(err)
	}
	got.setDefaults()
	if got != want {
		t.Errorf("defaults %+v, docs/CONFIG.md has %+v", got, want)
	}
}

func TestPathsFollowTheConfiguration(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("run_dir: /tmp/r\nlog: {level: debug}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := (&app{config: file}).paths()
	if err != nil || p.Listen.HybridDir != "/tmp/r/vsock" || p.State != "/var/lib/outguard" {
		t.Errorf("%+v, %v", p, err)
	}
}
