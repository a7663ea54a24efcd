package bundle

import (
	"os"
	"path/filepath"
	"testing"
)

// FuzzShow shows a bundle whose parts for people are any bytes: refused, or
// something to print.
func FuzzShow(f *testing.F) {
	fx := setup(f)
	dir, err := Create(f.Context(), fx.out, &fx.spec, fx.key)
	if err != nil {
		f.Fatal(err)
	}
	for _, part := range []string{FindingPart, OrdersPart, TimelineJSONPart} {
		if b, err := os.ReadFile(filepath.Join(dir, part)); err == nil { // this one has not every part
			f.Add(b)
		}
	}
	f.Add([]byte("null"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, part := range []string{FindingPart, OrdersPart, TimelineJSONPart} {
			if err := os.WriteFile(filepath.Join(dir, part), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s, err := Show(dir)
		if err == nil && s.Timeline != nil {
			_ = s.Timeline.Text()
		}
	})
}
