"""What each command does, a file each, with the records and cards that tell of it.

Commands import jobs, jobs import the library; nothing in the library imports a job.
"""
