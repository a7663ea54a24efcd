package process

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/outguard/outguard/plugins/engine"
)

func read(b []byte) (verdicts []Verdict, err error) {
	r := receiver{r: bufio.NewReader(bytes.NewReader(b)), buf: make([]byte, engine.MaxAnswer)}
	for {
		v, err := r.verdict()
		if err != nil {
			return verdicts, err
		}
		verdicts = append(verdicts, v)
	}
}

func finding(number uint64) []byte {
	return engine.AppendFinding(nil, number, &engine.Finding{Rule: "r", Severity: engine.Low})
}

func judged(number uint64, findings uint32) []byte { return engine.AppendJudged(nil, number, findings) }

func TestVerdicts(t *testing.T) {
	got, err := read(slices.Concat(judged(1, 0), finding(2), finding(2), judged(2, 2), judged(3, 0)))
	if err != io.EOF || len(got) != 3 || len(got[1].Findings) != 2 || got[2].Number != 3 {
		t.Errorf("verdicts %+v, error %v", got, err)
	}
}

// A lying or flooding engine breaks the contract, and that is all it does.
func TestLiars(t *testing.T) {
	flood := bytes.Repeat(finding(1), engine.MaxBatchFindings+1)
	batch, err := engine.AppendBatch(nil, 1, &engine.Batch{})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{
		"judged too early":      judged(2, 0),
		"judged again":          append(judged(1, 0), judged(1, 0)...),
		"finding of another":    finding(2),
		"finding of the past":   append(judged(1, 0), finding(1)...),
		"a finding unannounced": append(finding(1), judged(1, 0)...),
		"a finding swallowed":   judged(1, 1),
		"a flood":               flood,
		"a batch":               batch,
		"nonsense":              []byte("nonsense nonsense"),
		"a gigantic message":    {0xff, 0xff, 0xff, 0xff, 2, 1, 0, 0},
	} {
		if _, err := read(b); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := read(engine.AppendBroken(nil, 1, "no\nmore")); err == nil || err.Error() != `engine gave up: "no\nmore"` {
		t.Errorf("broken: %v", err)
	}
	if _, err := read(finding(1)[:20]); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("half a message: %v", err)
	}
}

func FuzzReceive(f *testing.F) {
	f.Add(slices.Concat(judged(1, 0), finding(2), judged(2, 1)))
	f.Fuzz(func(t *testing.T, b []byte) {
		verdicts, err := read(b)
		if err == nil {
			t.Fatal("no end")
		}
		for i, v := range verdicts {
			if v.Number != uint64(i+1) || len(v.Findings) > engine.MaxBatchFindings {
				t.Errorf("verdict %d is number %d with %d findings", i, v.Number, len(v.Findings))
			}
		}
	})
}
