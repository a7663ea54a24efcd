package bundle

import (
	"bytes"
	"context"
	"image"
	_ "image/png"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// browser has a headless Chromium look at pages. It is a test of the page, and
// not of this machine: where there is no Chromium it is skipped, unless it is
// promised.
type browser struct {
	t    *testing.T
	path string
	dir  string
}

func openBrowser(t *testing.T) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if slices.Contains(strings.Split(os.Getenv("OUTGUARD_REQUIRE"), ","), "chromium") {
			t.Fatal("OUTGUARD_REQUIRE promises chromium, and there is none")
		}
		t.Skip("no chromium here: make test-page installs it and runs this")
	}
	return &browser{t: t, path: path, dir: t.TempDir()}
}

// run returns what Chromium writes.
func (b *browser) run(page string, args ...string) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Minute)
	defer cancel()
	args = append([]string{
		"--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-extensions", "--hide-scrollbars",
		"--no-sandbox", // tests run as root, and the page is this test's own
		"--user-data-dir=" + filepath.Join(b.dir, "profile"), "--proxy-server=127.0.0.1:9", "--virtual-time-budget=2000",
	}, args...)
	cmd := exec.CommandContext(ctx, b.path, append(args, "file://"+page)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		b.t.Fatalf("chromium: %v: %s", err, errs.String())
	}
	return out.String()
}

func (b *browser) dom(page string) string { return b.run(page, "--dump-dom") }

func (b *browser) write(name, text string) string {
	b.t.Helper()
	path := filepath.Join(b.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return path
}

// TestPageInChromium opens the page of a hostile guest's incident: nothing of the
// guest's becomes an element, the page has its style, and what is put into it
// does not run.
func TestPageInChromium(t *testing.T) {
	b := openBrowser(t)
	_, dir, text := withPage(t)
	dom := b.dom(filepath.Join(dir, PagePart))
	for _, bad := range []string{"<script", "<img", "onerror=\"", "<b><b>", "<!--"} {
		if strings.Contains(dom, bad) {
			t.Errorf("the page's tree has %s in it", bad)
		}
	}
	if title := regexp.MustCompile(`<title>(.*)</title>`).FindStringSubmatch(dom); len(title) < 2 || title[1] != "tsem/violation in web 1" {
		t.Errorf("title %q", title)
	}
	for _, h := range []string{`&lt;script&gt;document.title="owned"&lt;/script&gt;`, `"&gt;&lt;img src=x onerror=alert(1)&gt;`, `gpj.<b class="esc">\u202e</b>exe.pdf`} {
		if !strings.Contains(dom, h) {
			t.Errorf("the page's tree lacks %s", h)
		}
	}
	for _, element := range []string{`<li class="d2 subject">`, `<tr class="subject">`, `<ol class="line">`, `<span class="r-done">`} {
		if strings.Count(dom, element) != 1 {
			t.Errorf("%d of %s", strings.Count(dom, element), element)
		}
	}

	// The policy itself, beside a page without it: what a flaw would let in.
	injected := strings.Replace(text, "</body>", `<script>document.title="ran"</script><p onclick="x" style="color:red" id="styled">x</p></body>`, 1)
	if dom := b.dom(b.write("with.html", injected)); strings.Contains(dom, "<title>ran</title>") {
		t.Error("a script ran under the page's policy")
	}
	without := regexp.MustCompile(`<meta http-equiv[^>]*>`).ReplaceAllString(injected, "")
	if dom := b.dom(b.write("without.html", without)); !strings.Contains(dom, "<title>ran</title>") {
		t.Error("the same script does not run without a policy either: this test shows nothing")
	}
}

// TestPageLooks takes a picture: the page's style is in force under its policy.
func TestPageLooks(t *testing.T) {
	b := openBrowser(t)
	_, dir, text := withPage(t)
	at := filepath.Join(t.ArtifactDir(), "page.png")
	shoot := func(page string) image.Image {
		b.run(page, "--window-size=1280,1600", "--screenshot="+at)
		f, err := os.Open(at)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		img, _, err := image.Decode(f)
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	img := shoot(filepath.Join(dir, PagePart))
	if size := img.Bounds().Size(); size.X != 1280 || size.Y < 1000 {
		t.Fatalf("a picture of %v", size)
	}
	bar, ink := count(img, 0xb3, 0x26, 0x1e), count(img, 0x1b, 0x23, 0x30)
	if bar < 500 || ink < 2000 {
		t.Errorf("%d pixels of a high severity's red and %d of text: the style is not there", bar, ink)
	}
	// Held against the same page with a style that the policy does not know.
	if n := count(shoot(b.write("other.html", strings.Replace(text, "<style>", "<style>/**/", 1))), 0xb3, 0x26, 0x1e); n != 0 {
		t.Errorf("a style that the policy does not name is in force: %d pixels", n)
	}
	shoot(filepath.Join(dir, PagePart)) // what is left is the page
}

// count is how many pixels have that colour.
func count(img image.Image, r, g, b uint32) (n int) {
	for y := img.Bounds().Min.Y; y < img.Bounds().Max.Y; y++ {
		for x := img.Bounds().Min.X; x < img.Bounds().Max.X; x++ {
			if cr, cg, cb, _ := img.At(x, y).RGBA(); cr>>8 == r && cg>>8 == g && cb>>8 == b {
				n++
			}
		}
	}
	return n
}
