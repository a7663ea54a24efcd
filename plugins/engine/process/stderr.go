package process

import (
	"bytes"
	"log/slog"
	"sync"
)

// lineLogger logs what an engine writes to its standard error, line by line,
// and keeps the first line for the error of a failed start.
type lineLogger struct {
	log *slog.Logger

	mu    sync.Mutex
	rest  []byte
	head  string
	lines int
}

const (
	maxLine  = 1 << 10
	maxLines = 1000 // of one process; an engine that writes more is not listened to
)

func (l *lineLogger) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for rest := b; len(rest) > 0; {
		line, after, whole := bytes.Cut(rest, []byte{'\n'})
		l.rest = append(l.rest, line[:min(len(line), maxLine-len(l.rest))]...)
		if whole {
			l.emit()
		}
		rest = after
	}
	return len(b), nil
}

func (l *lineLogger) emit() {
	line := string(l.rest)
	l.rest = l.rest[:0]
	if l.head == "" {
		l.head = line
	}
	if l.lines++; l.lines <= maxLines && line != "" {
		l.log.Warn("engine wrote to its standard error", "line", line)
	}
}

func (l *lineLogger) first() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}
