package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"connectrpc.com/connect"

	"github.com/outguard/outguard/host/api/safe"
)

// Error gives err a code for programs and, for people, the next thing to do:
//
//	api.Error(connect.CodeNotFound, "`outguard vms` lists the domains", err)
//
// It may be wrapped and joined: the code holds, and the text is as it reads.
func Error(code connect.Code, next string, err error) error {
	if next != "" {
		err = fmt.Errorf("%w; %s", err, next)
	}
	return &codedError{code, err}
}

// codedError is what connect.Error is but for its text, which connect.Error
// starts with the code.
type codedError struct {
	code connect.Code
	err  error
}

func (e *codedError) Error() string { return e.err.Error() }
func (e *codedError) Unwrap() error { return e.err }

// wireError is err as it leaves the server: with a code, and printable.
func wireError(err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	var theirs *connect.Error
	if errors.As(err, &theirs) && theirs == err {
		text = theirs.Message()
	}
	return connect.NewError(codeOf(err), errors.New(safe.Text(text)))
}

func codeOf(err error) connect.Code {
	var ours *codedError
	var theirs *connect.Error
	switch {
	case errors.As(err, &ours):
		return ours.code
	case errors.As(err, &theirs):
		return theirs.Code()
	case errors.Is(err, context.Canceled):
		return connect.CodeCanceled
	case errors.Is(err, context.DeadlineExceeded):
		return connect.CodeDeadlineExceeded
	case errors.Is(err, fs.ErrNotExist):
		return connect.CodeNotFound
	case errors.Is(err, errors.ErrUnsupported):
		return connect.CodeUnimplemented
	}
	return connect.CodeInternal
}

func invalid(next, format string, args ...any) error {
	return Error(connect.CodeInvalidArgument, next, fmt.Errorf(format, args...))
}
