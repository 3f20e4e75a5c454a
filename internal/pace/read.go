package pace

import "context"

type limitKey struct{}

// WithLimit has what is done with the context and reads much keep to the limit.
func WithLimit(ctx context.Context, l *Limit) context.Context {
	return context.WithValue(ctx, limitKey{}, l)
}

// Read returns when n bytes may be read by the context's limit, if it has one, or the context's cause.
func Read(ctx context.Context, n int) error {
	if l, ok := ctx.Value(limitKey{}).(*Limit); ok {
		return l.Wait(ctx, n)
	}
	return nil
}

// Waiting says whether somebody waits for the context's limit: who does is not standing still.
func Waiting(ctx context.Context) bool {
	l, ok := ctx.Value(limitKey{}).(*Limit)
	return ok && l.waiting.Load() > 0
}
