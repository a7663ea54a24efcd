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
//	api.Error(connect.CodeNotFound, "outguard vms lists the domains", err)
func Error(code connect.Code, next string, err error) error {
	if next != "" {
		err = fmt.Errorf("%w; %s", err, next)
	}
	return connect.NewError(code, err)
}

// wireError is err as it leaves the server: with a code, and printable.
func wireError(err error) error {
	if err == nil {
		return nil
	}
	code := connect.CodeInternal
	var coded *connect.Error
	switch {
	case errors.As(err, &coded):
		code = coded.Code()
		if coded == err {
			err = coded.Unwrap()
		}
	case errors.Is(err, context.Canceled):
		code = connect.CodeCanceled
	case errors.Is(err, context.DeadlineExceeded):
		code = connect.CodeDeadlineExceeded
	case errors.Is(err, fs.ErrNotExist):
		code = connect.CodeNotFound
	case errors.Is(err, errors.ErrUnsupported):
		code = connect.CodeUnimplemented
	}
	return connect.NewError(code, errors.New(safe.Text(err.Error())))
}

func invalid(next, format string, args ...any) error {
	return Error(connect.CodeInvalidArgument, next, fmt.Errorf(format, args...))
}
