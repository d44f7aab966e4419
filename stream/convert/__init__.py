"""Files of other people, as they are, to files in the event and item schema: mapped, converted, sorted by time.

sources.py    where rows come from: a file, a folder of parts, a query
guess.py      which column is meant by which field, by names and contents (names.py)
times.py      units and zones of times
columns.py    what stands for nothing, a date and a time apart
numbers.py    decimal points and commas
rows.py       raw rows to typed ones, and what is wrong with them
run.py        the whole way; words.py says what it will do
"""
