package engines

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStores(t *testing.T) {
	for name, store := range map[string]Store{"memory": NewMemory(), "dir": Dir(t.TempDir())} {
		t.Run(name, func(t *testing.T) {
			if all, err := store.Load("none"); err != nil || len(all) > 0 {
				t.Errorf("an empty store has %v, error %v", all, err)
			}
			for _, s := range []Saved{
				{Session: session, Index: 7, Data: []byte("one")},
				{Data: []byte("two")}, // covers no batch more
			} {
				if err := store.Save("e", vmA, s); err != nil {
					t.Fatal(err)
				}
			}
			all, err := store.Load("e")
			if err != nil || len(all) != 1 || !cmp.Equal(all[vmA], Saved{Session: session, Index: 7, Data: []byte("two")}) {
				t.Errorf("loaded %v, error %v", all, err)
			}
		})
	}
}

func FuzzParseSaved(f *testing.F) {
	f.Add(appendSaved(nil, Saved{Session: session, Index: 3, Data: []byte("data")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSaved(b)
		if err == nil && !bytes.Equal(appendSaved(nil, s), b) {
			t.Error("bytes differ after a round trip")
		}
	})
}
