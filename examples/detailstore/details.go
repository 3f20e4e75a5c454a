package main

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"time"

	"github.com/kvmbackup/kvmbackup/store/kvstore"
)

// details is a KV over two tables that a host has: vm_details(vm_id, name, value) and
// backup_details(backup_id, name, value), each with a unique index on its first two columns.
type details struct{ db *sql.DB }

var _ kvstore.KV = details{}

// in puts the object's table and column for T and ID. Both names are constants.
func in(kind kvstore.ObjectKind, query string) string {
	return strings.NewReplacer("T", kind.String()+"_details", "ID", kind.String()+"_id").Replace(query)
}

func (d details) Get(ctx context.Context, o kvstore.Object, key string) (value string, err error) {
	err = d.db.QueryRowContext(ctx, in(o.Kind, `select value from T where ID = $1 and name = $2`), o.ID, key).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return value, err
}

func (d details) Set(ctx context.Context, o kvstore.Object, key, value string) error {
	_, err := d.db.ExecContext(ctx, in(o.Kind, `insert into T (ID, name, value) values ($1, $2, $3)
		on conflict (ID, name) do update set value = excluded.value`), o.ID, key, value)
	return err
}

func (d details) Remove(ctx context.Context, o kvstore.Object, key string) error {
	_, err := d.db.ExecContext(ctx, in(o.Kind, `delete from T where ID = $1 and name = $2`), o.ID, key)
	return err
}

func (d details) List(ctx context.Context, o kvstore.Object) (map[string]string, error) {
	rows, err := d.db.QueryContext(ctx, in(o.Kind, `select name, value from T where ID = $1`), o.ID)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[string]string{}
	for rows.Next() {
		var name, value string
		if err := rows.Scan(&name, &value); err != nil {
			return nil, err
		}
		out[name] = value
	}
	return out, rows.Err()
}

func (d details) CompareAndSet(ctx context.Context, o kvstore.Object, key, old, value string) (bool, error) {
	query, args := `update T set value = $3 where ID = $1 and name = $2 and value = $4`, []any{o.ID, key, value, old}
	if old == "" {
		query, args = `insert into T (ID, name, value) values ($1, $2, $3) on conflict (ID, name) do nothing`, args[:3]
	}
	res, err := d.db.ExecContext(ctx, in(o.Kind, query), args...)
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n == 1, err
}

func (d details) Find(ctx context.Context, kind kvstore.ObjectKind, key string) ([]string, error) {
	rows, err := d.db.QueryContext(ctx, in(kind, `select ID from T where name = $1`), key)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var id string
		if err := rows.Scan(&id); err != nil {
			return nil, err
		}
		out = append(out, id)
	}
	return out, rows.Err()
}

// Now is the database's clock, for kvstore.Config.
func (d details) Now(ctx context.Context) (time.Time, error) {
	var ms int64
	err := d.db.QueryRowContext(ctx, `select cast((julianday('now') - 2440587.5) * 86400000 as integer)`).Scan(&ms)
	return time.UnixMilli(ms), err
}
