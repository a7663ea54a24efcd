package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxShown bounds what Show reads of one part.
const maxShown = 4 << 20

// Shown is what a bundle says of itself, unverified.
type Shown struct {
	Dir      string          `json:"dir"`
	Manifest *Manifest       `json:"manifest"`
	Timeline *Timeline       `json:"timeline,omitempty"`
	Finding  json.RawMessage `json:"finding,omitempty"`
	Orders   json.RawMessage `json:"orders,omitempty"`
}

// Show reads what there is to show of a bundle. It verifies nothing.
func Show(dir string) (*Shown, error) {
	text, err := readBounded(filepath.Join(dir, ManifestName), MaxManifest)
	if err != nil {
		return nil, fmt.Errorf("show bundle: %w", err)
	}
	m, err := ParseManifest(text)
	if err != nil {
		return nil, fmt.Errorf("show bundle: %w", err)
	}
	s := &Shown{Dir: dir, Manifest: m}
	err = errors.Join(
		showJSON(dir, FindingPart, &s.Finding),
		showJSON(dir, OrdersPart, &s.Orders),
		showJSON(dir, TimelineJSONPart, &s.Timeline),
	)
	if err != nil {
		return nil, fmt.Errorf("show bundle: %w", err)
	}
	return s, nil
}

func showJSON(dir, part string, to any) error {
	f, err := openInside(dir, part)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxShown+1))
	if err == nil && len(b) > maxShown {
		err = fmt.Errorf("more than %d bytes", maxShown)
	}
	if err == nil {
		err = json.Unmarshal(b, to)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", part, err)
	}
	return nil
}

// List names the bundles in a directory, oldest first: directories, and archives
// of which it does not say whether they are any.
func List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list bundles: %w", err)
	}
	var paths []string
	for _, e := range entries {
		archive := e.Type().IsRegular() && BundleName(e.Name()) != e.Name()
		if (e.IsDir() || archive) && !strings.HasPrefix(e.Name(), ".") {
			paths = append(paths, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(paths)
	return paths, nil
}
