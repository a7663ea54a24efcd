package bundle

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/outguard/outguard/plugins/engine"
)

// hostile is what a guest may call a program, an argument or a container.
var hostile = []string{
	`<script>document.title="owned"</script>`, `"><img src=x onerror=alert(1)>`, `'; alert(1); '`, `{{.Style}}`, `</style><script>alert(1)</script>`,
	`]]><!--`, "javascript:alert(1)", "\x1b[2J\x07\x00", "a\nb\r\tc", "gpj.\u202eexe.pdf", "\u2066isolate\u2069\u200f", "zero\u200bwidth\ufeff", "bad\xff\xc3", "line\u2028sep",
	"\U000e0041tag", "раypal", "עברית", strings.Repeat("<b>", 2000),
}

// examplePage is a page of an incident in which every text of the guest's is
// hostile.
func examplePage() *Page {
	uid := uint32(33)
	p := &Page{
		Findings: []engine.Finding{{
			ID: "f-1", Engine: "tsem", VM: vm1, At: at0.Add(120 * time.Microsecond), Received: at0, Rule: "tsem/violation", Severity: engine.High, Technique: "T1059",
			Reason: `"/usr/sbin/httpd" ran "/tmp/x" (pid 812), which the model has not seen.`, Event: "bprm_committed_creds", PID: 812,
			Comm: hostile[0], Path: "/tmp/" + hostile[9], Detail: map[string]string{},
		}, {ID: "f-2", Engine: "monitor", Rule: "session/silence", Severity: engine.Medium, At: at0.Add(time.Second), Reason: "The agent is silent."}},
		More: 3,
		Decisions: []Decision{{
			At: at0.Add(time.Millisecond), Finding: "f-1", Rule: "violation", Steps: []string{"log", "pause", "capture"}, Dropped: []string{"alert: cool-down"}, Trials: []string{"strict: destroy"},
		}},
		Orders: []Ordered{
			{Given: at0.Add(time.Millisecond), What: "pause", Asked: "playbook", Status: "done", Effect: at0.Add(4 * time.Millisecond)},
			{Given: at0.Add(time.Millisecond), What: "capture", Asked: "playbook"},
		},
		Tree: &Tree{From: 4, Next: 9, Gaps: []string{"Records 5 to 6 were passed over."}, Processes: []Process{
			{PID: 1, TGID: 1, StartNs: 5e6, Parent: -1, Origin: "snapshot", Path: "/sbin/init", Argv: []string{"init"}, Part: true},
			{PID: 300, TGID: 300, StartNs: 7e9, Parent: 0, Depth: 1, Origin: "exec", Path: "/usr/sbin/httpd", Argv: []string{"httpd", "-f", "-p", "80"}, UID: &uid, Part: true},
			{PID: 812, TGID: 812, StartNs: 93e9, Parent: 1, Depth: 2, Origin: "exec", Path: "/tmp/x", Argv: append([]string{"/tmp/x"}, hostile...), UID: &uid,
				SHA256: strings.Repeat("ab", 32), Findings: []string{"f-1"}, Subject: true, Part: true},
			{PID: 813, TGID: 813, StartNs: 94e9, ExitNs: 94e9 + 5e6, Parent: 2, Depth: 3, Origin: "unknown", Comm: hostile[7], Skipped: 2, Part: true},
			{PID: 99, TGID: 99, StartNs: 6e9, Parent: 0, Depth: 1, Origin: "snapshot", Path: "/usr/sbin/cron", Argv: []string{"cron"}},
		}},
		Facts:   []Fact{{"qemu", "7.2.0"}, {"agent", hostile[1]}},
		CPUs:    []CPU{{0, []Register{{"rip", 0xffffffff81000000}, {"rsp", 0xffffc90000013eb0}}}},
		Missing: []string{"No screenshot: the domain has no display."},
	}
	for i, h := range hostile {
		p.Findings[0].Detail[fmt.Sprintf("detail%02d", i)] = h
		p.Events = append(p.Events, Event{
			At: at0, BootNs: 93e9 + uint64(i)*1e6, Type: "file_open", PID: 812, Comm: h, What: []Fact{{"path", h}}, Subject: i == 4,
		})
	}
	return p
}

func withPage(t testing.TB) (*fixture, string, string) {
	t.Helper()
	f := setup(t)
	f.spec.Page = examplePage()
	dir := f.create(t)
	text, err := os.ReadFile(filepath.Join(dir, PagePart))
	if err != nil {
		t.Fatal(err)
	}
	return f, dir, string(text)
}

// TestPageIsInert: whatever the guest is called, the page has the elements that
// its template has, and no character of it acts.
func TestPageIsInert(t *testing.T) {
	f, dir, text := withPage(t)
	tag := regexp.MustCompile(`<\s*/?\s*([a-zA-Z!][a-zA-Z0-9]*)`)
	allowed := " !DOCTYPE html head meta title style body header p h1 h2 h3 span dl div dt dd bdi b i small nav a main section ol li ul time em article details summary table thead tbody tr th td code footer "
	for _, m := range tag.FindAllStringSubmatch(text, -1) {
		if !strings.Contains(allowed, " "+m[1]+" ") {
			t.Errorf("an element %q", m[0])
		}
	}
	for _, m := range regexp.MustCompile(`(?i)<[^>]*\s(on\w+|src|style|srcset|action|xlink:href)\s*=`).FindAllString(text, -1) {
		t.Errorf("an attribute: %s", m)
	}
	for _, m := range regexp.MustCompile(`href="([^"]*)"`).FindAllStringSubmatch(text, -1) {
		if !strings.HasPrefix(m[1], "#") {
			t.Errorf("a link to %s", m[1])
		}
	}
	for _, r := range text {
		if r != '\n' && Clean(string(r)) != string(r) {
			t.Errorf("the page has %q in it", r)
		}
	}
	if n := strings.Count(text, "<style>"); n != 1 {
		t.Errorf("%d styles", n)
	}
	if _, err := Verify(dir, f.key.Verifier()); err != nil {
		t.Error(err)
	}
}

// TestPageSaysItAll: each text of the guest's stands there, to be read back.
func TestPageSaysItAll(t *testing.T) {
	_, _, text := withPage(t)
	plain := html.UnescapeString(regexp.MustCompile(`</?(bdi|b|i)\b[^>]*>`).ReplaceAllString(text, ""))
	for _, h := range hostile {
		var want strings.Builder
		for _, r := range runs(h) {
			want.WriteString(r.Text)
		}
		if !strings.Contains(plain, want.String()) {
			t.Errorf("%q is not shown", h)
		}
	}
	for _, want := range []string{
		`default-src 'none'`, "web 1", "f-1", "812", "T1059", "tsem/violation", "session/silence", "on trial: strict: destroy", "alert: cool-down",
		"3 findings more", "Records 5 to 6 were passed over.", "2 ancestors forgotten", "ffffffff81000000", "No screenshot", "under way", MemoryPart, TimelineJSONPart,
	} {
		if !strings.Contains(plain, want) {
			t.Errorf("no %q on the page", want)
		}
	}
	if !strings.Contains(text, `<b class="esc">\u202e</b>`) || !strings.Contains(text, `<b class="esc">\x1b</b>`) {
		t.Error("what acts is not marked")
	}
	if !strings.Contains(text, `<i class="far">ра</i>ypal`) {
		t.Error("letters that look like others are not marked")
	}
	if strings.Contains(text, "ZgotmplZ") {
		t.Error("the template refused a value")
	}
}

// TestPageNamesEveryPart: digests as the manifest has them.
func TestPageNamesEveryPart(t *testing.T) {
	_, dir, text := withPage(t)
	s, err := Show(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Manifest.Parts {
		if p.Path != PagePart && !(strings.Contains(text, "<td>"+p.Path+"</td>") && strings.Contains(text, p.SHA256.String())) {
			t.Errorf("%s is not on the page", p.Path)
		}
	}
}

// TestPageOfACapture: a person asked, and there is nothing beside the capture.
func TestPageOfACapture(t *testing.T) {
	f := setup(t)
	f.spec.Finding, f.spec.Order, f.spec.Timeline, f.spec.Page = "", "o-1", nil, &Page{}
	text, err := os.ReadFile(filepath.Join(f.create(t), PagePart))
	if err != nil || !bytes.Contains(text, []byte("A capture that a person asked for.")) || bytes.Count(text, []byte(`class="none"`)) != 5 {
		t.Errorf("%v\n%s", err, text)
	}
}

func TestAs(t *testing.T) {
	for _, c := range []struct {
		p    Process
		want string
	}{
		{Process{Path: "/bin/busybox", Argv: []string{"sh", "-c"}}, "sh"},
		{Process{Path: "/bin/busybox", Comm: "httpd"}, "httpd"},
		{Process{Path: "/bin/sh", Argv: []string{"/bin/sh"}}, ""},
		{Process{Path: "/usr/bin/sh", Argv: []string{"sh"}}, ""},
		{Process{Path: "/usr/sbin/a-name-that-is-cut", Comm: "a-name-that-is-"}, ""},
		{Process{Comm: "kthreadd"}, ""},
		{Process{Path: "/bin/x", Argv: []string{""}}, ""},
	} {
		if got := c.p.As(); got != c.want {
			t.Errorf("%+v: %q, want %q", c.p, got, c.want)
		}
	}
}

func TestTreeText(t *testing.T) {
	tree := examplePage().Tree
	tree.Processes[2].Argv = []string{"/tmp/x", "<script>", "\x1b[2J", "a\u202eb", "two words"}
	want := `Processes out of records 4 to 9. Times are since the guest's boot.
Records 5 to 6 were passed over.
> the one that this is about   * of the incident   + ended

The incident:

* 1 /sbin/init  began 0.005000
*   300 /usr/sbin/httpd -f -p 80  began 7.000000  uid 33
>     812 /tmp/x <script> "\x1b[2J" "a\u202eb" "two words"  began 93.000000  uid 33
*       813 "\x1b[2J\a\x00"  began 94.000000  ended 94.005000  uid 0  history unknown  ancestors-forgotten 2

Everything:

* 1 /sbin/init  began 0.005000
*   300 /usr/sbin/httpd -f -p 80  began 7.000000  uid 33
>     812 /tmp/x <script> "\x1b[2J" "a\u202eb" "two words"  began 93.000000  uid 33
*       813 "\x1b[2J\a\x00"  began 94.000000  ended 94.005000  uid 0  history unknown  ancestors-forgotten 2
    99 /usr/sbin/cron  began 6.000000
`
	tree.Processes[3].UID = new(uint32)
	if got := tree.Text(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// FuzzPage: no text of a guest's makes an element, or a character that acts.
func FuzzPage(f *testing.F) {
	for _, h := range hostile {
		f.Add(h)
	}
	m := &Manifest{VM: vm1, VMName: "web", Finding: "f-1"}
	elements := func(t *testing.T, s string) int {
		p := &Page{
			Findings: []engine.Finding{{ID: "f-1", Comm: s, Path: s, Reason: s, Rule: s, Technique: s, Event: s, PID: 1, Detail: map[string]string{"a": s}}},
			Tree:     &Tree{Processes: []Process{{Path: s, Argv: []string{s, s}, Where: s, Part: true}}},
			Events:   []Event{{Comm: s, What: []Fact{{"path", s}}}},
		}
		text, err := p.html(m, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range string(text) {
			if r != '\n' && Clean(string(r)) != string(r) {
				t.Fatalf("the page has %q in it", r)
			}
		}
		return bytes.Count(text, []byte("<")) - 2*(bytes.Count(text, []byte("<b class"))+bytes.Count(text, []byte("<i class"))+bytes.Count(text, []byte("<bdi><i")))
	}
	f.Fuzz(func(t *testing.T, s string) {
		if s == "" || !bytes.ContainsFunc([]byte(s), func(r rune) bool { return r <= 0x7e }) {
			return
		}
		if got, want := elements(t, s), elements(t, "x"); got != want {
			t.Errorf("%d elements, want %d", got, want)
		}
	})
}

// TestPlainJSON: what a guest wrote is read back, and acts on no terminal.
func TestPlainJSON(t *testing.T) {
	for _, h := range hostile {
		b, err := plainJSON([]string{h})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range string(b) {
			if r != '\n' && Clean(string(r)) != string(r) {
				t.Errorf("%q in %q", r, b)
			}
		}
		var back []string
		if err := json.Unmarshal(b, &back); err != nil || back[0] != strings.ToValidUTF8(h, "\ufffd") && utf8.ValidString(h) {
			t.Errorf("%q, %v", back, err)
		}
	}
}
