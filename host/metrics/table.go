package metrics

import "sync"

// table holds one value for each key, of at most limit keys; all further keys
// share one value, labelled "other".
type table[V any] struct {
	limit int

	mu    sync.Mutex // guards byKey
	byKey map[string]entry[V]
	rest  *entry[V]
}

type entry[V any] struct {
	label string
	value V
}

func (t *table[V]) get(key, label string, make func(label string) V) V {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.byKey[key]; ok {
		return e.value
	}
	if len(t.byKey) >= t.limit {
		if t.rest == nil {
			t.rest = &entry[V]{other, make(other)}
		}
		return t.rest.value
	}
	if t.byKey == nil {
		t.byKey = map[string]entry[V]{}
	}
	e := entry[V]{label, make(label)}
	t.byKey[key] = e
	return e.value
}

// label is that of a key that get has seen, "other" for the rest.
func (t *table[V]) label(key string) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.byKey[key]; ok {
		return e.label
	}
	return other
}

func (t *table[V]) drop(key string) (label string, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.byKey[key]
	delete(t.byKey, key)
	return e.label, ok
}

// bounded passes the first limit different values through.
type bounded struct {
	limit int

	mu   sync.Mutex // guards seen
	seen map[string]bool
}

func (b *bounded) label(v string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.seen[v]:
		return v
	case len(b.seen) >= b.limit:
		return other
	}
	if b.seen == nil {
		b.seen = map[string]bool{}
	}
	b.seen[v] = true
	return v
}
