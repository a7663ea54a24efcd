package process

import (
	"bufio"
	"fmt"
	"io"

	"github.com/outguard/outguard/plugins/engine"
)

// Verdict is the answer to one batch.
type Verdict struct {
	Number   uint64           // of the batch; all before it are answered too
	Findings []engine.Finding // nil where there was nothing to say; the receiver's to keep
}

// Receive reads answers and hands each batch's verdict to got, in the order of
// the batches, until the stream ends or the engine breaks the contract. It
// never returns nil: io.EOF is the engine's orderly end. got is called from
// this goroutine alone.
func (p *Process) Receive(got func(Verdict)) error {
	r := receiver{r: bufio.NewReaderSize(p.stream, 64<<10), buf: make([]byte, engine.MaxAnswer)}
	for {
		v, err := r.verdict()
		if err != nil {
			return err
		}
		got(v)
	}
}

// receiver reads verdicts. The watermark must go up by one, and the findings
// before it be of that batch and within the limits.
type receiver struct {
	r    *bufio.Reader
	buf  []byte
	last uint64
}

func (r *receiver) verdict() (Verdict, error) {
	v := Verdict{Number: r.last + 1}
	for {
		kind, payload, err := r.message()
		if err != nil {
			return Verdict{}, err
		}
		switch kind {
		case engine.KindFinding:
			number, f, err := engine.ParseFinding(payload)
			if err != nil {
				return Verdict{}, fmt.Errorf("%w: %w", ErrProtocol, err)
			}
			if number != v.Number || len(v.Findings) == engine.MaxBatchFindings {
				return Verdict{}, fmt.Errorf("%w: finding %d of batch %d in batch %d", ErrProtocol, len(v.Findings)+1, number, v.Number)
			}
			v.Findings = append(v.Findings, f)
		case engine.KindJudged:
			number, findings, err := engine.ParseJudged(payload)
			if err != nil {
				return Verdict{}, fmt.Errorf("%w: %w", ErrProtocol, err)
			}
			if number != v.Number || int(findings) != len(v.Findings) {
				return Verdict{}, fmt.Errorf("%w: judged %d with %d findings, want %d with %d", ErrProtocol, number, findings, v.Number, len(v.Findings))
			}
			r.last = number
			return v, nil
		case engine.KindBroken:
			_, reason, err := engine.ParseBroken(payload)
			if err != nil {
				return Verdict{}, fmt.Errorf("%w: %w", ErrProtocol, err)
			}
			return Verdict{}, fmt.Errorf("engine gave up: %q", reason)
		default:
			return Verdict{}, fmt.Errorf("%w: message kind %d", ErrProtocol, kind)
		}
	}
}

func (r *receiver) message() (engine.Kind, []byte, error) {
	header := r.buf[:engine.MessageHeader]
	if _, err := io.ReadFull(r.r, header); err != nil {
		return 0, nil, err // io.EOF between messages is the orderly end
	}
	kind, n, err := engine.ParseMessageHeader(header, engine.MaxAnswer)
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	if _, err := io.ReadFull(r.r, r.buf[:n]); err != nil {
		return 0, nil, fmt.Errorf("read answer: %w", io.ErrUnexpectedEOF)
	}
	return kind, r.buf[:n], nil
}
