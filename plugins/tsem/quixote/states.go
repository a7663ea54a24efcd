package quixote

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/outguard/outguard/plugins/tsem"
)

// States are the points of a run, or of a model file, and what made them.
type States struct {
	Model  *tsem.Model
	Events map[tsem.ID]string // what made a point first, in words; the text is the guest's: escape it
	Failed int                // lines that were no event
}

// ReadStates reads an export of events, or a model file, and makes a model of
// it.
func ReadStates(r io.Reader, d Dialect, load *LoadOptions) (*States, error) {
	b := bufio.NewReader(r)
	first, err := b.Peek(1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if bytes.Equal(first, []byte("{")) {
		return learn(b, d)
	}
	l, err := LoadModel(b, load)
	if err != nil {
		return nil, err
	}
	return &States{Model: l.Model}, nil
}

func learn(r io.Reader, d Dialect) (*States, error) {
	s := &States{Model: tsem.NewModel(0), Events: map[tsem.ID]string{}}
	lines, p, mapper := NewLines(r), NewParser(d), tsem.NewMapper()
	for {
		line, err := lines.Next()
		if errors.Is(err, io.EOF) {
			return s, nil
		}
		if err != nil {
			return nil, err
		}
		if a, is, err := p.Aggregate(line); is && err == nil {
			s.Model.SetAggregate(a)
			continue
		}
		e, err := p.Parse(line)
		if err != nil {
			s.Failed++
			continue
		}
		c, err := mapper.Map(&e.Event)
		if err != nil {
			s.Failed++
			continue
		}
		o, err := s.Model.Update(c.Point)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", lines.Number(), err)
		}
		if o.Added {
			s.Events[c.Point] = p.Process() + " " + e.Words()
		}
	}
}
